"""The recipe's section `rlhf`.

`section` has its keys and checks that they fit together; the sections below it are `rewards`, `regularization` (the KL
penalty, importance weights and limits that end RLHF) and `fleet` (the actors). `presets` has the numbers of each
algorithm's paper.
"""
