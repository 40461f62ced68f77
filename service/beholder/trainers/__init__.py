"""Reward functions for the trainers people use, over `beholder.client`: each module's docstring has the flag.

    trl.py       GRPO and RLOO of TRL
    verl.py      a reward manager, and custom_reward_function
    ms_swift.py  GRPO's --reward_funcs
    slime.py     --custom-rm-path of slime and miles
    openrlhf.py  a Python file as --reward.remote_url
    easyr1.py    a Python file as worker.reward.reward_function

Where a trainer has no place for arguments, the variables of `rewards.RewardSettings` configure it. A sample that cannot
be scored raises; nothing is ever invented for it. None of the modules imports its trainer, torch or vLLM.
"""
