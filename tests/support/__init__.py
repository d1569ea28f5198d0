"""What several folders of tests share: instances, peers in other processes, proxies, hosts."""
