"""The command line `triptych`.

main defines the commands that read a recipe and turns errors into one line and an exit code; stage_runner runs stages
for them, plan_report prints the resource plan. The other modules define one command or group of commands each:
evaluate, experiment, export, feedback (annotators and preference files), judge, keys (API keys), loop, rounds, score
and versions (of served models). doctor examines installation and runs, reward_doctor the rewards of a recipe.
"""
