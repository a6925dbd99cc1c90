"""Async-native, streaming LLM inference on Hugging Face and OpenAI-compatible endpoints."""
