"""Conversations, prompts and rankings: from files and the feedback database to what stages train on, and back.

source_rows reads files (row_files) and functions, turns brings the turns of a conversation into one form, chat_formats
reads conversations in any layout, and prompts reads prompts and chooses those to rank. render_chats, pack_chats and
text_rows are the phases that turn conversations into the shards of SFT. The package preferences makes training data of
rankings and other judgements; the package feedback moves preference files into the feedback database and out of it.
balance writes the error of any stage that has too few items left to go on; call_failures counts the failed calls of a
user's function. A new layout of conversations goes to chat_formats, a new format of preferences to `FORMATS` in
feedback.formats.
"""
