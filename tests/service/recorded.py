"""Requests as trainers build them, about one conversation."""

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which colour?"},
    {"role": "assistant", "content": "Of what?"},
    {"role": "user", "content": "Of grass."},
]
PROMPT = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in CHAT)
PROMPT += "<|im_start|>assistant\n"
RESPONSES = ["Green.", "Red, I <|im_end|> think."]
OPENRLHF = {"query": [f"{PROMPT}{RESPONSES[0]}<|im_end|>"], "prompts": [PROMPT], "labels": ["Green."]}
LLAMA_FACTORY = {"model": "model", "messages": [f"{PROMPT}{response}<|im_end|>" for response in RESPONSES]}
SLIME = {"prompt": PROMPT, "response": RESPONSES[0], "label": "Green."}
# verl renders the conversation by the reward model's own template: that of the tiny base has no line break there.
VERL = {"model": "", "input": f"{PROMPT}{RESPONSES[0]}<|im_end|>\n", "use_activation": False}
