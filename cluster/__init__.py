"""The lowest layer: the machines that work runs on, and the files and tables that it leaves. It knows no model.

A command reads a recipe (`recipe`), plans the machine and connects to Ray (`runtime`), and runs stages in the run
folder (`run`), which also holds the human feedback (`feedback`). Beside the packages, `errors` has the failures that
all layers raise, `keys` the API keys of a run, `personal_data` replaces personal data in text, `trace` has the timeline
of RLHF that the run page draws, and `compat` all uses of undocumented parts of Ray.
"""

__version__ = "0.1.0"
