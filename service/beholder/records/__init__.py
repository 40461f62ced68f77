"""Files of prompts and responses, in the layouts of the published data sets: what training and offline scoring read."""
