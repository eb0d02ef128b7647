"""Speed side by side: each file asks one question of us and a peer, on the same work, in turn."""
