"""Multimodal embeddings from encoder processes to language-model schedulers."""
