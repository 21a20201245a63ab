from cluster.cli import stage_main

stage_main("corpus")
