"""The command line `triptych`.

main defines the commands that read a recipe and turns errors into one line and an exit code; stage_runner runs stages
for them, plan_report prints the resource plan, source_report the rows of the sources. The other modules define one
command or group of commands each: evaluate (with judge), experiment, feedback (annotators and preference files), keys
(API keys), models (export and score), rounds (with loop), start (init), status and versions (of served models). doctor
examines installation and runs, reward_doctor the rewards of a recipe.
"""
