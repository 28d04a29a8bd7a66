"""What another server runs, over HTTP: scores (`mode="remote"`), and language models (`load_rankrag(server=...)`).

    load -> connecting: address, api, model, key          once, blocking the thread that loads
    RemoteScorer.steps -> batches.score ----------------> server.Server -> client.Client -> httpx
    RankRAGScorer.ranking -> served -> completions -----> retries          one a loop

Everything right of the first arrow runs on the event loop of `loop`, which no caller ever sees; callers wait for
futures.
"""
