"""The workers' side.

`boot` (how one comes to life), `living` (what all can do), `stage_worker` and `codec_worker`, `shift` (one run of one
stage), `links` (between stages) and `payloads` (how tensors travel over them), `shared` (weights that the workers of a
machine have together), `snapshots` (what a lost stage is restored from), `trouble` (what exceptions mean).
"""
