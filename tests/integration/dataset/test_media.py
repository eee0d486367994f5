"""Images, sounds and films: from an archive to augmented rows, and the films that break decoders."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import multiprocessing
import struct
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from augment_worker import augmented_shard
from dataset_client import Client, refusal
from PIL import Image
from test_augmentation import BOX, parameters, random, red_box, run, scene
from test_engine_media_import import imported, opened, rows_of

from libs.common.blobs import BlobStore, nested_manifests
from libs.common.clock import SYSTEM_CLOCK
from libs.compute.context import LocalContext
from services.dataset.domain.augmentation import AUGMENTATIONS, read_augmentation
from services.dataset.engines import augmenting
from services.dataset.engines.audio_augmentation import AUDIO_OPERATIONS, read_samples, write_samples
from services.dataset.engines.media import MediaChild, MediaError
from services.dataset.engines.video_augmentation import VIDEO_OPERATIONS, Film, read_film
from services.dataset.handlers.augmentation import parse_augmentation
from services.dataset.jobs import sweep
from tests.unit.dataset.media_files import compressed, film, image, sound
from tests.unit.dataset.test_engine_archives import zipped
from tests.unit.dataset.test_engine_tasks import sample, version_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/store")


@pytest.fixture(scope="module")
def child() -> Any:
    with MediaChild() as running:
        yield running


MP4, AVI = film(ending="mp4", code="mp4v"), film()


def without_frames(kept: int) -> bytes:
    """An MP4 whose frames are zeros after the first bytes."""
    start, end = MP4.index(b"mdat") + 4 + kept, MP4.index(b"moov") - 4
    return MP4[:start] + bytes(end - start) + MP4[end:]


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
BROKEN_FILMS = {
    "nothing": (b"", "not a film"),
    "text": (b"hello" * 99, "not a film"),
    "image": (image(), "not a film"),
    "playlist": (PLAYLIST, "not a film"),
    "list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a film"),
    "RIFF of sound": (sound(), "cannot be opened|pixels|frame"),
    "only the type": (MP4[:40], "cannot be opened"),
    "no index": (MP4.replace(b"moov", b"mooX"), "cannot be opened"),
    "half an MP4": (MP4[: len(MP4) // 2], "cannot be opened|cut off|no frame"),
    "half an AVI": (AVI[: len(AVI) // 2], "cannot be opened|cut off|no frame"),
    "frames of zeros": (without_frames(0), "pixels|no frame"),
    "one frame": (without_frames(40), "cut off: 1 of 12 frames"),
    "zeros": (AVI[:400] + bytes(len(AVI) - 400), "cannot be opened|cut off|no frame|frames"),
    "huge frames": (
        AVI.replace(struct.pack("<LL", 64, 48), b"\xff\xff\xff\x3f" * 2).replace(b"MJPG", b"DIB "),
        "cannot be opened|pixels",
    ),
    "Matroska of nothing": (b"\x1aE\xdf\xa3" + bytes(200), "cannot be opened"),
}


@pytest.mark.parametrize("what", BROKEN_FILMS)
def test_a_broken_film_is_named(child: MediaChild, tmp_path: Path, what: str) -> None:
    data, reason = BROKEN_FILMS[what]
    path = tmp_path / "film"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=rf"{reason}"):
        child.probe(path, "video")
    path.write_bytes(image())
    assert child.probe(path, "image")["width"] == 32


@pytest.mark.parametrize(("data", "codec"), [(MP4, "FMP4"), (AVI, "MJPG"), (film(ending="mkv", code="mp4v"), "FMP4")])
def test_facts_of_a_film(child: MediaChild, tmp_path: Path, data: bytes, codec: str) -> None:
    path = tmp_path / "film"
    path.write_bytes(data)
    facts = child.probe(path, "video")
    assert {name: facts[name] for name in ("width", "height", "fps", "frames", "duration")} == {
        "width": 64,
        "height": 48,
        "fps": 10.0,
        "frames": 12,
        "duration": 1.2,
    }
    assert facts["codec"] == codec


# Operators.


def film_of(tmp_path: Path) -> Film:
    path = tmp_path / "film.avi"
    path.write_bytes(AVI)
    return read_film(path)


def test_frames_are_dropped_repeated_reversed_and_changed(tmp_path: Path) -> None:
    original = film_of(tmp_path)
    frames = original.frames
    assert set(AUGMENTATIONS["video"]) == set(VIDEO_OPERATIONS)

    def changed(operator: str, **given: Any) -> list[np.ndarray]:
        return VIDEO_OPERATIONS[operator](original, parameters("video", operator, **given), random(2)).frames

    assert 0 < len(changed("drop_frames", share=0.5)) < 12
    assert len(changed("drop_frames", share=1.0)) == 1
    assert 12 < len(changed("repeat_frames", share=0.5)) < 24
    assert [frame.mean() for frame in changed("reverse")] == [frame.mean() for frame in frames][::-1]
    brighter = [frame.mean() / before.mean() for frame, before in zip(changed("brightness"), frames, strict=True)]
    assert max(brighter) - min(brighter) < 0.05
    noisy = changed("noise", max_deviation=0.5)
    assert len({(frame.astype(int) - before).tobytes() for frame, before in zip(noisy, frames, strict=True)}) == 12


def samples_of(tmp_path: Path, **form: Any) -> tuple[np.ndarray, Any]:
    path = tmp_path / "a.wav"
    path.write_bytes(sound(**form))
    return read_samples(path)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_are_written_as_they_were_read(tmp_path: Path, width: int) -> None:
    values = np.linspace(-1, 0.99, 200, dtype=np.float32).reshape(100, 2)
    _, form = samples_of(tmp_path, channels=2, width=4)
    write_samples(tmp_path / "b.wav", values, form._replace(width=width))
    again, read = read_samples(tmp_path / "b.wav")
    assert (read.width, again.shape) == (width, (100, 2))
    assert np.abs(again - values).max() <= 1 / 2 ** (8 * width - 1) + 1e-6


def pitch_of(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples[:, 0] * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def test_speed_and_pitch(tmp_path: Path) -> None:
    tone, form = samples_of(tmp_path, seconds=1.0, rate=8000)
    faster = AUDIO_OPERATIONS["speed"](tone, parameters("audio", "speed", max_change=0.5), random(3))
    by = len(tone) / len(faster)
    assert abs(by - 1) > 0.02
    assert pitch_of(faster, form.rate) == pytest.approx(440 * by, rel=0.02)
    higher = AUDIO_OPERATIONS["pitch"](tone, parameters("audio", "pitch", max_semitones=6), random(1))
    semitones = 12 * np.log2(pitch_of(higher, form.rate) / 440)
    assert len(higher) == len(tone)
    assert semitones == pytest.approx(random(1).uniform(-1, 1) * 6, abs=0.3)


def test_noise_has_the_ratio_that_was_asked_for(tmp_path: Path) -> None:
    tone, _ = samples_of(tmp_path, seconds=1.0)
    noisy = AUDIO_OPERATIONS["noise"](tone, parameters("audio", "noise", min_snr=20, max_snr=20), random())
    ratio = 10 * np.log10(np.mean(tone**2) / np.mean((noisy - tone) ** 2))
    assert ratio == pytest.approx(20, abs=0.2)
    silence = np.zeros((100, 1), np.float32)
    assert (AUDIO_OPERATIONS["noise"](silence, parameters("audio", "noise"), random()) == 0).all()


def test_images_are_copied_with_their_boxes(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = io.BytesIO()
    scene().save(picture, "PNG")
    metadata = [
        {"file_name": "a.png", "objects": [{"label": "red", "box": list(BOX)}]},
        {"file_name": "c.png", "objects": [{"label": "red", "box": ["left"]}]},
    ]
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in metadata)
    files = [("a.png", picture.getvalue()), ("sub/b.jpg", image(format="JPEG")), ("c.png", image(9, 9))]
    version = imported(store, zipped(*files, ("metadata.jsonl", lines)))["manifest_digest"]
    recipe = {"seed": 1, "copies": 2, "steps": [{"flip": {"probability": 1}}, "crop"]}
    result = run(store, version, "image", recipe)
    rows = rows_of(store, result)
    assert [row["file_name"] for row in rows] == [
        *("a.png", "a.augmented1.png", "a.augmented2.png"),
        *("sub/b.jpg", "sub/b.augmented1.jpg", "sub/b.augmented2.jpg", "c.png"),
    ]
    for row in rows[1:3]:
        copy = Image.open(io.BytesIO(store.read_sync(row["sha256"])))
        assert copy.size == (row["width"], row["height"])
        assert np.allclose(row["objects"][0]["box"], red_box(copy), atol=1.1)
        assert row["objects"][0]["label"] == "red"
    assert rows[1]["augmented_from"] == opened(store, version).index.id_of(0)
    failed = next(rule for rule in result["report"]["rules"] if rule["rule"] == "not_augmented")
    assert failed["dropped"] == 2
    assert "four numbers" in failed["examples"][0]["reason"]
    monkeypatch.setitem(augmenting._SHARD_ROWS, "image", 1)
    assert run(store, version, "image", recipe)["manifest_digest"] == result["manifest_digest"]
    # The files of originals and copies are kept.
    store.collect_sync([result["manifest_digest"]], [], -1)
    assert all(store.read_sync(row["sha256"]) for row in rows)


def test_sounds_are_copied(store: BlobStore) -> None:
    version = imported(store, zipped(("a.wav", sound(seconds=0.5))), "audio")["manifest_digest"]
    rows = rows_of(store, run(store, version, "audio", {"steps": [{"speed": {"max_change": 1}}, "noise"]}))
    assert [row["file_name"] for row in rows] == ["a.wav", "a.augmented1.wav"]
    assert rows[1]["sample_rate"] == 8000
    assert rows[1]["duration"] != rows[0]["duration"]


@pytest.mark.parametrize(
    ("format", "subtype", "name"), [("FLAC", "PCM_24", "a.flac"), ("OGG", "VORBIS", "a.ogg"), ("MP3", None, "a.mp3")]
)
def test_other_sounds_are_copied_as_wav(store: BlobStore, format: str, subtype: str | None, name: str) -> None:
    archive = zipped((name, compressed(format, subtype, channels=2)))
    version = imported(store, archive, "audio")["manifest_digest"]
    original, copy = rows_of(store, run(store, version, "audio", {"steps": [{"noise": {"probability": 1}}]}))
    assert original["codec"] in ("flac", "vorbis", "mp3")
    width = "pcm_s24le" if format == "FLAC" else "pcm_s16le"
    assert (copy["file_name"], copy["codec"], copy["channels"]) == ("a.augmented1.wav", width, 2)
    assert (copy["sample_rate"], copy["duration"]) == (8000, original["duration"])


def test_samples_of_flac_are_those_of_wav(tmp_path: Path) -> None:
    """Of both with 16 bits; compressed sounds come near."""
    wave, form = samples_of(tmp_path, seconds=0.5)
    for kind, near in (("FLAC", 1e-4), ("MP3", 0.05), ("OGG", 0.05)):
        (tmp_path / "b").write_bytes(compressed(kind))
        samples, read = read_samples(tmp_path / "b")
        assert (samples.shape, samples.dtype, read) == (wave.shape, wave.dtype, form)
        assert np.sqrt(np.mean((samples - wave) ** 2)) < near, kind


def test_a_row_without_a_file_is_told(store: BlobStore) -> None:
    version = version_of(store, [{"text": "a"}])
    result = run(store, version, "image", {"steps": ["flip"]})
    assert (result["row_count"], result["report"]["rules"][-1]["examples"][0]["reason"]) == (1, "the row has no file")


@pytest.mark.parametrize(("ending", "data"), [("avi", AVI), ("mp4", MP4)])
def test_films_are_copied(store: BlobStore, ending: str, data: bytes) -> None:
    version = imported(store, zipped((f"a.{ending}", data)), "video")["manifest_digest"]
    recipe = {"seed": 5, "steps": ["noise", {"repeat_frames": {"share": 0.5}}, {"reverse": {"probability": 1}}]}
    result = run(store, version, "video", recipe)
    original, copy = rows_of(store, result)
    assert (original["frames"], copy["file_name"]) == (12, f"a.augmented1.{ending}")
    assert copy["frames"] > 12
    # Encoded again it has the same bytes.
    assert run(store, version, "video", recipe)["manifest_digest"] == result["manifest_digest"]


# Workers.


def test_any_number_of_workers_gives_the_same_copies(store: BlobStore, tmp_path: Path) -> None:
    version = version_of(store, [{"text": sample(number)} for number in range(24)])
    recipe = read_augmentation({"copies": 2, "steps": ["swap_words", "misspell", "insert_words"]}, "text")
    spec = {"version": version, "media_type": "text", "text_column": "text", "recipe": recipe.to_json()}
    spawn = multiprocessing.get_context("spawn")
    found: list[list[Any]] = []
    for workers in (1, 2, 4):
        size = 24 // workers
        bounds = [(start, start + size) for start in range(0, 24, size)]
        with ProcessPoolExecutor(workers, spawn) as pool:
            shards = pool.map(functools.partial(augmented_shard, spec, f"{tmp_path}/store"), bounds)
            pairs = zip(bounds, shards, strict=True)
            found.append([(start + copy.at, copy.row) for (start, _), copies in pairs for copy in copies])
    assert len(found[0]) == 48
    assert found[0] == found[1] == found[2]


# The service.


def archive(count: int) -> bytes:
    pictures = [(f"img/{number}.png", image(9 + number, 9)) for number in range(count)]
    labels = [{"file_name": f"{number}.png", "label": f"l{number % 3}"} for number in range(count)]
    lines = b"".join(json.dumps(label).encode() + b"\n" for label in labels)
    return zipped(*pictures, ("img/broken.png", b"x"), ("img/metadata.jsonl", lines))


async def test_an_archive_becomes_a_version_and_is_augmented_on_ray(
    worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.dataset("pictures", type=1)
    name = "orgs/acme/datasets/pictures"
    version = await worker.imported(name, archive(40), "pictures.zip")
    assert (version.row_count, version.report.line_error_count) == (40, 1)
    assert "img/broken.png: not an image" in version.report.line_errors[0].error
    recipe = "seed: 3\nsteps: [{flip: {probability: 1}}, noise]"
    task = await worker.finish(await worker.AugmentVersion(pb.AugmentVersionRequest(name=version.name, recipe=recipe)))
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    made = await worker.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))
    assert (made.row_count, made.report.changed["flip"]) == (80, 40)
    assert made.lineage.parents[0].relation == "augmented_from"

    store = worker.app.blobs
    (media,) = nested_manifests(await store.load_manifest(version.manifest_digest))
    spec = {"version": version.manifest_digest, "grant": "", "media_grant": media, "media_type": "image"}
    spec |= {"text_column": "text", "recipe": parse_augmentation(recipe, "image").to_json()}
    alone = await asyncio.to_thread(augmenting.run, LocalContext(spec, blobs_write=store, blobs_read=store))
    assert alone["manifest_digest"] == made.manifest_digest

    # The sweep leaves what rows of a version have, however old it is.
    monkeypatch.setattr(sweep, "_GRACE", timedelta(seconds=-60))
    await sweep.sweep(worker.app.database, store, SYSTEM_CLOCK)
    rows = rows_of(store, {"manifest_digest": made.manifest_digest})
    assert len(rows) == 80
    for row in rows:
        assert Image.open(io.BytesIO(await store.read(row["sha256"]))).size == (row["width"], row["height"])


async def test_what_cannot_be_is_refused_at_once(client: Client) -> None:
    await client.dataset("texts", type=2)
    upload = await client.upload(archive(1), "pictures.zip")
    request = pb.ImportVersionRequest(parent="orgs/acme/datasets/texts", upload=upload.name)
    error = await refusal(client.ImportVersion(request))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "format")
    catalogue = await client.DescribeAugmentation(pb.DescribeAugmentationRequest())
    assert [media.media_type for media in catalogue.media] == ["text", "image", "audio", "video"]
    name = "orgs/acme/datasets/texts/versions/v1"
    error = await refusal(client.AugmentVersion(pb.AugmentVersionRequest(name=name, recipe="steps: [misspell]")))
    assert error.reason == "NOT_FOUND"
