"""The kind of file system that a path lies on."""

from pathlib import Path

import pytest

from cluster.feedback import open_feedback, store
from cluster.run.storage.mounts import file_system, is_network

TABLE = r"""overlay / overlay rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sda1 /home/local ext4 rw 0 0
mds@o2ib:/scratch /scratch\040space lustre rw,flock 0 0
gcsfuse /bucket fuse.gcsfuse rw 0 0
/dev/sdb1 /usb fuse.ntfs-3g rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/tmp/run", "overlay", False),
        ("/home/me/run", "nfs4", True),
        ("/homes/me", "overlay", False),
        ("/home/local/run", "ext4", False),
        ("/scratch space/run", "lustre", True),
        ("/bucket/run", "fuse.gcsfuse", True),
        ("/usb/run", "fuse.ntfs-3g", False),
    ],
)
def test_network_file_systems_are_told_apart(tmp_path: Path, path: str, kind: str, network: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(TABLE)
    assert file_system(Path(path), mounts) == kind
    assert is_network(Path(path), mounts) == network


@pytest.mark.parametrize(("network", "mode"), [(True, "delete"), (False, "wal")])
def test_feedback_on_a_network_file_system_has_a_journal_that_works_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool, mode: str
) -> None:
    monkeypatch.setattr(store, "is_network", lambda _: network)
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    for _ in range(2):
        open_feedback(url).close()
    engine = store.open_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == mode
    engine.dispose()
