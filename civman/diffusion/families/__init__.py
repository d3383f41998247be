"""The families of checkpoints that civman renders, one module each; `registry` finds the family of a file. No torch."""
