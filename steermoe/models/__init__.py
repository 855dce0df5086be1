"""The model: frozen encoder and LLM, and between and around them what is trained.

Follow one utterance: encoders -> (routers, steering | lora) -> downsample -> projection -> sequence -> llm;
steermoe.py puts them together, adapter.py writes and reads what was trained, frozen.py guards what was not.
"""
