"""What people and functions prefer, as training data.

rankings reads the judgements of a round and writes rankings.parquet. people_rows turns votes, thumbs and other
judgements into its rows, preference_rows reads the pairs and single answers of DPO. annotators calls a function that
ranks in place of people. ask_order decides which prompts people are asked first.
"""
