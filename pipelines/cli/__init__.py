"""The command line `triptych`.

main defines the commands that read a recipe and turns errors into one line and an exit code; stage_runner runs stages
for them, plan_report prints the resource plan. feedback, keys, versions and score define the commands on annotators and
preference files, API keys, served versions and scored files; doctor examines installation and runs.
"""
