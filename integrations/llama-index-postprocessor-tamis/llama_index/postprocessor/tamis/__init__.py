"""Tamis as a node postprocessor: `node_postprocessors=[TamisRerank(model="...", top_n=5)]`."""

from llama_index.postprocessor.tamis.base import TamisRerank

__all__ = ["TamisRerank"]
