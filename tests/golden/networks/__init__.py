"""Networks of spconv's users, written once for whatever library has spconv's names.

`build(spconv, config)` of each module makes a network from a golden file's config: `spconv` is `sparse_ops.torch.spconv` or the
real `spconv.pytorch`. How blocks hang together is written out, as users write it; the geometry of every convolution, the number
of stages and blocks, and so all widths are read from `config["trace"]`. Names of parameters are the file's `state.*`.
"""
