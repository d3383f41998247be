"""Prompt parsing: emphasis syntax, `<lora:…>` tags, CLIP tokens and chunks. No torch."""
