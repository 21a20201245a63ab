"""The folders of a tiny model, written once for all test files of the learner."""

import pytest

from tests.actors.learner.hand_made import Folders, model_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return model_folders(tmp_path_factory.mktemp("learner"))
