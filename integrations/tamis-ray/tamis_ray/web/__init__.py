"""Rerankers over HTTP, in the shapes that their clients know. Nothing here knows of Ray."""
