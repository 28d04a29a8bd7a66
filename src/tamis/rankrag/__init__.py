"""RankRAG (Yu et al. 2024, arXiv 2407.02485): one language model ranks the passages, then answers from the best."""
