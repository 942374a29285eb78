"""Published models: their files <-> our networks.

layout     one row of a family's table: a leaf of our tree <-> tensors of a file, slice by slice
families   GPT-2, OPT, GPT-NeoX, Llama, Mistral, Qwen 2 and 3, Gemma 3: configs and tables
files      safetensors files of a directory: names, shapes, slices
ggml       GGUF files: names, shapes, dequantised slices, and their configs
reading    `hf:DIR` and `gguf:FILE` -> a network on the mesh, shard by shard
writing    a network -> a Hugging Face directory
peft       adapters -> a directory of PEFT
"""
