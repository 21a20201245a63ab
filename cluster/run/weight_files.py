"""The files of a model's weights: one, or several that an index lists, and a fingerprint of all of them."""

import json
from pathlib import Path

from cluster.errors import UserError
from cluster.run.folder import file_fingerprint, fingerprint

# The file of a model in one file, and the list that names the file of each tensor where there are several.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Lists the files that transformers would load: beside them may lie the same weights in another layout.

    Raises:
        UserError: the index is damaged, or names a file outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names a file outside its folder")
        return [folder / name for name in names]
    except FileNotFoundError:
        return sorted(folder.glob("*.safetensors"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is damaged: {error}") from error


def weights_fingerprint(folder: Path) -> str:
    """Hashes the weights of a model: the bytes of its file, or the names and bytes of all its files.

    Raises:
        UserError: there are none, or one of them is missing.
    """
    files = weight_files(folder)
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)} of its weights")
    if not files:
        raise UserError(f"{folder} holds no weights: it has neither {WEIGHTS} nor {INDEX}")
    if len(files) == 1:
        return file_fingerprint(files[0])
    return fingerprint({file.name: file_fingerprint(file) for file in files})
