"""The reward model as a torch module, and how prompts become its inputs.

Shared by training, export and the transformers engine. Imports torch and transformers; the client and the HTTP layer
never import it.
"""
