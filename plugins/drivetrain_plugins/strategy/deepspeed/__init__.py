"""The strategy `deepspeed`: ZeRO's stages on DeepSpeed's engine.

Named like the package that it wraps. Imports are absolute, so that `import deepspeed` in here is the vendor's.
"""
