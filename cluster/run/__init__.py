"""A run on disk: its folder, its stages, its metrics, and the files through which other processes reach it.

`layout` names the stages and their subfolders, `stages` decides whether one is skipped, resumed or run, `folder` builds
it aside and commits it with a manifest, `rounds` keeps what it replaces, `atomic` writes single files, and the room
storage finds the inputs by path or URI. While a stage works, `metrics` records its steps and `fleet_control` takes
requests to resize the RLHF fleet. When it is served, `versions` keeps the models that were live, and `server_client`
sends requests to the server.
"""
