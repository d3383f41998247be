"""How the demo's models were made: pictures, training, export, judge. Not part of the installed package."""
