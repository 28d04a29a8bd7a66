"""Scores pairs in bulk on the cluster that it runs in; run again, it goes on where it was stopped.

ray job submit --working-dir cookbook/ray -- python score.py s3://bucket/pairs s3://bucket/scored MODEL
"""

import sys

from tamis_ray import score_dataset

source, output, model = sys.argv[1:]
scored = score_dataset(source, model, output=output, id_columns=["id"], num_gpus=1, on_error="skip")
print(scored.count(), "rows in", output)
