"""What a prompt means: emphasis syntax, `<lora:…>` tags, CLIP tokens and chunks. No torch."""
