"""The model families that civman renders, one module for each; `registry` finds the family of a checkpoint.

Does not import torch.
"""
