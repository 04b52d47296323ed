"""Classify Parquet backlogs in bulk with a LoRA adapter on vLLM. Importing this loads neither torch
nor vllm.
"""

__version__ = "0.1.0"
