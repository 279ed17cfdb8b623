"""Watching a run of training: collapse in words, throughput, and probes on labelled data, each in a file of its own.

`LeVLJEPATrainer` feeds all three. What they find goes into the logs, under names of their own, and so to every
`report_to`, to `log.jsonl` beside the checkpoints, and to `levljepa plot`.
"""
