"""The functions of the recipe `infra/recipes/smollm2.yaml`: questions, trainers' answers, an annotator and an exam.

They are in everyday English, for a model that knows English. The small world of the demo is `pipelines.demo`.
"""
