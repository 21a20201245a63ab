"""TensorBoard's event files, read back by their format."""

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from cluster.run.metrics import EVENT_FILES, MetricsWriter, TensorBoardWriter, metrics_progress, read_metrics

LENGTH_AND_ITS_CHECKSUM, CHECKSUM = 12, 4


def events(folder: Path) -> Iterator[Event]:
    """Reads TFRecord files: a length (8 bytes) and its checksum, the event and its checksum."""
    for file in sorted(folder.glob(EVENT_FILES)):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            yield Event.FromString(data[LENGTH_AND_ITS_CHECKSUM : LENGTH_AND_ITS_CHECKSUM + length])
            data = data[LENGTH_AND_ITS_CHECKSUM + length + CHECKSUM :]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [
        (event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.tag == name
    ]


def test_every_number_of_every_step_is_written_with_its_time(tmp_path: Path) -> None:
    with metrics_progress(tmp_path, 3, "training"):
        writer = MetricsWriter(tmp_path)
        for step in range(3):
            writer.write(step, loss=float(3 - step), tokens=7, note="no number")
        writer.write(3, samples=[{"given": "Once", "written": " upon a time", "wanted": "."}])
    assert scalars(tmp_path, "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert scalars(tmp_path, "tokens") == [(0, 7.0), (1, 7.0), (2, 7.0)]
    assert scalars(tmp_path, "note") == scalars(tmp_path, "time") == []
    times = {event.step: event.wall_time for event in events(tmp_path) if event.summary.value}
    assert [times[row["step"]] for row in read_metrics(tmp_path)] == pytest.approx(
        [row["time"] for row in read_metrics(tmp_path)]
    )
    written = [
        value.tensor.string_val[0].decode()
        for event in events(tmp_path)
        for value in event.summary.value
        if event.step == 3
    ]
    assert written == ["**Once**\n\n upon a time"]


def test_repeated_steps_are_written_once(tmp_path: Path) -> None:
    # The follower reads the rows before and after a resumed stage removes those of steps that it repeats.
    with closing(TensorBoardWriter(tmp_path)) as first:
        writer = MetricsWriter(tmp_path)
        for step in range(4):
            writer.write(step, loss=float(step))
        first.follow(read_metrics(tmp_path))
    assert [loss for _, loss in scalars(tmp_path, "loss")] == [0.0, 1.0, 2.0, 3.0]
    with closing(TensorBoardWriter(tmp_path)) as second:
        second.follow(read_metrics(tmp_path))
        writer = MetricsWriter(tmp_path, resume_at=2)
        writer.write(2, loss=12.0)
        second.follow(read_metrics(tmp_path))
        writer.write(3, loss=13.0)
        second.follow(read_metrics(tmp_path))
    assert scalars(tmp_path, "loss") == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0)]
