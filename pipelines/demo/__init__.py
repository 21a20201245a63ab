"""The small world of the demo recipe, reached only through the `module:function` names in infra/recipes/demo.yaml.

facts writes the corpus, questions asks about it and about the requests and claims of behaviors, conversations answers
for SFT, annotator ranks in place of people, and exam grades exam_questions. An example of one's own sources,
annotator and exam: no stage imports it.
"""
