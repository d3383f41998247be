"""The library under human names in another program's folders."""
