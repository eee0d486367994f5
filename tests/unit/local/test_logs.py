"""Log files: rotated under a writer, followed across a rotation."""

from __future__ import annotations

from pathlib import Path

from deploy.local import logs


def test_a_small_log_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("line\n")
    assert not logs.rotate(path, limit=100)
    assert path.read_text() == "line\n"


def test_a_writer_in_append_mode_goes_on_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("a") as writer:
        writer.write("x" * 200 + "\n")
        writer.flush()
        assert logs.rotate(path, limit=100)
        writer.write("after\n")
        writer.flush()
    assert path.read_text() == "after\n"
    assert path.with_name("a.log.1").read_text() == "x" * 200 + "\n"


def test_the_oldest_log_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for number in range(5):
        path.write_text(str(number) * 200)
        logs.rotate(path, limit=100)
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert kept == ["a.log", "a.log.1", "a.log.2"]
    assert path.with_name("a.log.1").read_text() == "4" * 200
    assert path.with_name("a.log.2").read_text() == "3" * 200


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"{number}\n" for number in range(5000)))
    assert logs.tail(path, 3) == ["4997", "4998", "4999"]
    assert logs.tail(tmp_path / "none.log", 3) == []


def test_words_before_the_start_of_a_process_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("dataset is up\n")
    offset = path.stat().st_size
    assert not logs.says(path, "is up", offset)
    with path.open("a") as writer:
        writer.write("dataset is up\n")
    assert logs.says(path, "is up", offset)


def test_follow_gives_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n")
    followed = logs.follow({"a": path})
    with path.open("a") as writer:
        # The generator looks at the size when it is first asked, so `old` and these lines come after that look.
        writer.write("")
    first = _first_after(followed, path, "new line\nhalf")
    assert first == ("a", "new line")


def _first_after(followed: object, path: Path, text: str) -> tuple[str, str]:
    import threading

    def write() -> None:
        with path.open("a") as writer:
            writer.write(text)

    threading.Timer(0.5, write).start()
    return next(followed)  # type: ignore[call-overload]
