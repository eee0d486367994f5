"""The sound of augmented films: in step with their frames, changed by operators of its own, and broken in all ways."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pytest
from test_augmentation import parameters, run
from test_engine_media_import import imported, opened, rows_of

from libs.common.blobs import BlobStore
from services.dataset.domain.augmentation import read_augmentation
from services.dataset.engines import augmenting
from services.dataset.engines.decoding import BadMedia
from services.dataset.engines.film_sound import Sound, add_sound, read_sound
from services.dataset.engines.media import Augmented, MediaChild, MediaError
from services.dataset.engines.media_augmentation import augment_file
from services.dataset.engines.video_augmentation import read_film
from tests.unit.dataset.media_files import film, film_with_beep
from tests.unit.dataset.test_engine_archives import zipped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

BEEP = 7


@pytest.fixture(scope="module")
def child() -> Any:
    with MediaChild() as running:
        yield running


def step(operator: str, seed: int = 1, **given: Any) -> dict[str, Any]:
    return {"operator": operator, "seed": seed, **parameters("video", operator, probability=1, **given)}


def augmented(child: MediaChild, folder: Path, data: bytes, *steps: dict[str, Any], ending: str = "avi") -> Augmented:
    """Writes the changed film as `out` with the ending."""
    path = folder / "original"
    path.write_bytes(data)
    return child.augment(path, folder / f"out.{ending}", "video", steps, [])


def heard(path: Path) -> np.ndarray:
    """The sound at the times that the file states: (n,) float32."""
    with av.open(str(path)) as opened:
        begin = opened.streams.video[0].start_time or 0
        assert begin == 0
        pieces = [(round((frame.time or 0) * frame.rate), frame.to_ndarray()) for frame in opened.decode(audio=0)]
    samples = np.zeros(max(at + values.shape[1] for at, values in pieces), np.float32)
    for at, values in pieces:
        whole = values[0] / 2**15 if values.dtype.kind == "i" else values[0]
        # What comes before the beginning is not played.
        samples[max(at, 0) : at + len(whole)] = whole[max(-at, 0) :]
    return samples


def loud(path: Path, rate: int = 16_000) -> list[int]:
    """Numbers of the frames while which there is a tone."""
    samples = heard(path)
    frames = [samples[at : at + rate // 10] for at in range(0, len(samples), rate // 10)]
    return [number for number, values in enumerate(frames) if np.sqrt(np.mean(values**2)) > 0.1]


def shown(path: Path) -> list[int]:
    """Which frames of the original are shown, by their brightness: MPEG-4 makes it less by two or three, each time."""
    return [round((frame.mean() - 16) / 10) for frame in read_film(path).frames]


@pytest.mark.parametrize("ending", ["avi", "mp4"])
@pytest.mark.parametrize(
    "steps",
    [
        [step("noise", max_deviation=0.01)],
        [step("drop_frames", seed=1, share=0.5)],
        [step("drop_frames", seed=2, share=0.5)],
        [step("repeat_frames", seed=1, share=0.5)],
        [step("repeat_frames", seed=2, share=0.5)],
        [step("reverse")],
        [step("sound_noise")],
        [step("sound_pitch")],
        [step("repeat_frames", share=0.5), step("reverse"), step("drop_frames", share=0.3), step("sound_noise")],
    ],
    ids=lambda steps: "-".join(f"{one['operator']}{one['seed']}" for one in steps),
)
def test_picture_and_sound_stay_in_step(
    child: MediaChild, tmp_path: Path, ending: str, steps: list[dict[str, Any]]
) -> None:
    done = augmented(child, tmp_path, film_with_beep(ending, BEEP), *steps, ending=ending)
    out = tmp_path / f"out.{ending}"
    frames = shown(out)
    assert (done.facts["frames"], done.applied) == (len(frames), [one["operator"] for one in steps])
    assert done.facts["fps"] == 10
    assert loud(out) == [number for number, frame in enumerate(frames) if frame == BEEP]
    assert len(heard(out)) == pytest.approx(len(frames) * 1600, abs=1100)
    # Encoded again it has the same bytes.
    before = out.read_bytes()
    augmented(child, tmp_path, film_with_beep(ending, BEEP), *steps, ending=ending)
    assert out.read_bytes() == before


def test_brightness_leaves_the_sound(child: MediaChild, tmp_path: Path) -> None:
    data = film_with_beep()
    augmented(child, tmp_path, data, step("brightness"))
    assert (heard(tmp_path / "out.avi") == heard(tmp_path / "original")).all()


@pytest.mark.parametrize(
    ("beep", "parts"), [(7, [(5, 20)]), (7, [(0, 9)]), (12, [(0, 4), (10, 20)])], ids=["late", "short", "with a gap"]
)
def test_a_sound_that_is_not_there_all_the_time(
    child: MediaChild, tmp_path: Path, beep: int, parts: list[tuple[int, int]]
) -> None:
    data = film_with_beep("mkv", beep, parts)
    augmented(child, tmp_path, data, step("reverse"), ending="mp4")
    assert loud(tmp_path / "out.mp4") == [19 - beep]


@pytest.mark.parametrize("ending", ["avi", "mp4"])
def test_operators_of_the_sound(child: MediaChild, tmp_path: Path, ending: str) -> None:
    data, out = film_with_beep(ending, BEEP), tmp_path / f"out.{ending}"

    def changed(*steps: dict[str, Any]) -> np.ndarray:
        augmented(child, tmp_path, data, *steps, ending=ending)
        assert shown(out) == list(range(20))
        return heard(out)

    assert np.abs(changed(step("sound_mute"))).max() < 1e-3
    assert np.abs(changed(step("sound_mute"), step("sound_noise"))).max() < 1e-3
    noise = changed(step("sound_noise", min_snr=10, max_snr=10))[:9600]
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(0.354 / 20**0.5 / 10**0.5, rel=0.2)
    tone = changed(step("sound_pitch", max_semitones=12))[11_200:12_800]
    assert abs(np.argmax(np.abs(np.fft.rfft(tone))) * 10 - 1000) > 30
    # A single frame is shorter than the window.
    data = film_with_beep(ending, BEEP, rate=8000)
    augmented(child, tmp_path, data, step("drop_frames", share=1), step("sound_pitch"), ending=ending)
    assert shown(out) == [0]


def test_a_film_without_a_sound_is_left_alone(child: MediaChild, tmp_path: Path) -> None:
    steps = [step("sound_noise"), step("sound_mute"), step("sound_pitch")]
    assert augmented(child, tmp_path, film(), *steps) == Augmented({}, [], [])
    assert not (tmp_path / "out.avi").exists()
    assert augmented(child, tmp_path, film(), *steps, step("reverse")).applied == ["reverse"]
    with av.open(str(tmp_path / "out.avi")) as opened:
        assert not opened.streams.audio


@pytest.mark.parametrize(
    ("rate", "channels", "written"), [(192_000, 1, 96_000), (8_000, 6, 8_000), (44_100, 2, 44_100), (16_000, 8, 16_000)]
)
def test_sounds_of_other_forms(tmp_path: Path, rate: int, channels: int, written: int) -> None:
    silent, out = tmp_path / "silent.mp4", tmp_path / "out.mp4"
    silent.write_bytes(film(20, "mp4", "mp4v"))
    tone = 0.5 * np.sin(np.arange(2 * rate) * 2 * np.pi * 440 / rate, dtype=np.float32)
    add_sound(silent, out, Sound(np.repeat(tone[:, None], channels, axis=1), rate))
    sound = read_sound(out, 2)
    assert sound is not None
    assert (sound.rate, sound.samples.shape) == (written, (2 * written, channels))
    again = sound.samples[written // 2 : written, 0]
    assert np.argmax(np.abs(np.fft.rfft(again))) * 2 == 440


def test_titles_may_be_in_any_encoding(child: MediaChild, tmp_path: Path) -> None:
    data = film_with_beep()
    assert b"Lavf" in data
    told = augmented(child, tmp_path, data.replace(b"Lavf", "\u7535\u5f71".encode("gbk")), step("sound_mute"))
    assert told.applied == ["sound_mute"]


def test_a_sound_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    silent = tmp_path / "silent.avi"
    silent.write_bytes(film())
    with pytest.raises(BadMedia, match="12 channels; at most 8"):
        add_sound(silent, tmp_path / "out.avi", Sound(np.zeros((100, 12), np.float32), 8000))


def broken_sound() -> bytes:
    """An MP4 whose frames are whole and whose sound is not."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        path.write_bytes(film_with_beep("mp4"))
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as opened:
            for packet in opened.demux(opened.streams.audio[0]):
                if packet.pos is not None and packet.size:
                    data[packet.pos : packet.pos + packet.size] = b"\xd5" * packet.size
    return bytes(data)


def test_a_broken_sound_is_named(child: MediaChild, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="its sound cannot be decoded") as caught:
        augmented(child, tmp_path, broken_sound(), step("reverse"), ending="mp4")
    assert str(tmp_path) not in str(caught.value)
    pid = child.pid
    assert augmented(child, tmp_path, film_with_beep(), step("reverse")).applied == ["reverse"]
    assert child.pid == pid


def test_a_sound_that_changes_its_form_is_named(child: MediaChild, tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    path.with_name("silent.mkv").write_bytes(film(20, "mkv", "mp4v"))
    with av.open(str(path.with_name("silent.mkv"))) as source, av.open(str(path), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        track = target.add_stream("mp3", 16_000, layout="mono")
        other = av.AudioCodecContext.create("mp3", "w")
        other.rate, other.layout, other.format = 16_000, "stereo", "fltp"
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                target.mux(packet)
        for at, (encoder, layout) in enumerate([(track, "mono"), (other, "stereo")]):
            silence = np.zeros((1 + at, 16_000), np.float32)
            heard = av.AudioFrame.from_ndarray(silence, "fltp", layout)
            heard.rate, heard.pts, heard.time_base = 16_000, at * 24_000, Fraction(1, 16_000)
            for packet in [*encoder.encode(heard), *encoder.encode(None)]:
                packet.stream = track
                target.mux(packet)
    with pytest.raises(MediaError, match="changes its rate or its channels"):
        augmented(child, tmp_path, path.read_bytes(), step("reverse"), ending="mp4")


@pytest.mark.parametrize(
    "data", [b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1/a\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
)
def test_a_list_of_other_files_is_no_film(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "film"
    path.write_bytes(data)
    with pytest.raises(BadMedia, match="not a film of a known format"):
        read_sound(path, 1)


def test_without_the_package_a_film_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than losing its sound."""
    for name in ("film_sound", "video_augmentation"):
        monkeypatch.delitem(sys.modules, f"services.dataset.engines.{name}")
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "film"
    path.write_bytes(film())
    with pytest.raises(BadMedia, match="extra `film`"):
        augment_file(path, tmp_path / "out.avi", "video", [step("reverse")], [])


def test_every_child_makes_the_same_films(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}/store")
    films = [(f"{number}.{ending}", film_with_beep(ending, number)) for number, ending in enumerate(["avi", "mp4"])]
    version = imported(store, zipped(*films), "video")["manifest_digest"]
    recipe = {"seed": 3, "copies": 2, "steps": ["sound_noise", "drop_frames", {"sound_pitch": {"probability": 0.5}}]}
    rows = rows_of(store, run(store, version, "video", recipe))
    spec = {"media_type": "video", "recipe": read_augmentation(recipe, "video").to_json()}
    found = []
    for at in range(2):
        with MediaChild() as child:
            found += augmenting.augment(opened(store, version), store, child, spec, at, at + 1).copies
    assert len(found) == 4
    assert [copy.row["sha256"] for copy in found] == [row["sha256"] for row in rows if "augmented_from" in row]
