"""Instructions that small calls take, counted by callgrind and compared with a baseline."""
