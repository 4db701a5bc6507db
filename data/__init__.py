"""Text -> tokens -> batches, without any knowledge of networks.

One token passes through: config -> corpus (plays, webster, hub, documents) -> limit -> splits -> tokenizer -> encode
-> batches.
`dataset.prepare` calls them in this order and keeps the result in the cache.
"""
