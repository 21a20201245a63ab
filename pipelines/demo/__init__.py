"""The small world of the demo recipe, reached only through the `module:function` names in infra/recipes/demo.yaml.

facts writes the corpus. questions makes questions about it, and, with behaviors, small_talk and unknowns, about
requests, claims, everyday matters and things that a model cannot know; wording rewrites them as people type.
conversations answers for SFT, annotator ranks in place of people, exam grades exam_questions and the sentences of
guide, and rewards has a reward that is easily gamed. An example of one's own sources, annotator and exam: no stage
imports it.
"""
