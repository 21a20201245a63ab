"""A run on disk: its folder, its stages, its metrics, and the files through which other processes reach it.

`layout` names the stages and their subfolders, `stages` decides whether one is skipped, resumed or run, `folder` builds
it aside and commits it with a manifest, `rounds` keeps the stages that it replaces, and `round_differences` compares
rounds. `lock` keeps a second process out, `atomic` writes single files, `weight_files` hashes a model's weights, and
the package storage finds the inputs by path or URI. While a stage works, `metrics` records its steps, `progress` reads
them, and `fleet_control` takes requests to resize the RLHF fleet. `trail` holds the decisions of `triptych loop`. When
the run is served, `versions` keeps the models that were live, and `server_client` sends requests to the server.
"""
