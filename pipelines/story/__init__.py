"""The training that a visitor of the story page asks for: a reward model on their rankings, then a policy, in a run
folder of its own.

`actor` holds the Ray actor, `training` what it trains, and `content` what the page shows.

RUN/story/
    sft/ …               links to the stages of the run that it branches off
    preferences/         the visitor's rankings
    reward/, policy/     trained by the stages of every run, in seconds
    training.json        the latest request and its outcome; an interrupted training goes on with the next server
    served/              the versions of the visitor's policy
"""
