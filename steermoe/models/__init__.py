"""The model: a frozen encoder and a frozen LLM, and the trained parts inside and between them.

Follow one utterance: encoders -> (routers, gating, steering | lora) -> downsample -> projectors -> packing -> llm;
tower.py and speech_llm.py assemble them, steermoe.py is the public interface, inference.py answers, checkpoint.py
saves and loads what was trained, pretrained.py loads and hashes what was not.
"""
