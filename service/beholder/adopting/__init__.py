"""A reward model that was trained elsewhere -> a Beholder checkpoint: `beholder adopt`.

source.py         the folder as data: config, weights by name and shape; nothing in it is executed
layouts.py        the layouts of a backbone: Hugging Face's own, and the published InternVL one
internvl_chat.py  InternVLChatModel's names, packed matrices and config in terms of the native InternVL
heads.py          the scalar head, under any of the names that trainers give it
plan.py           which stored weight becomes which, or the list of those that do not map
samples.py        pictures and responses, made in code, to measure the adopted model on
adopt.py          all of it, into a folder that appears whole or not at all
"""
