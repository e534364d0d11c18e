// Finish times of transfers by SimGrid: reads cases from stdin, writes their times to stdout.
//
// A case: "nodes links routes flows", then per link its bandwidth (B/s), per route its source and
// target (each pair once), its latency (s), the number of its links and their numbers, per flow its
// route, bytes and start (s), sorted by start.
// For each case a line: seconds of wall time that SimGrid took to run it, then the finish times.
//
// Each case runs in a process of its own, since SimGrid keeps one platform per process.

#include <simgrid/s4u.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

namespace sg4 = simgrid::s4u;

struct Route {
  int source;
  int target;
  double latency_s;
  std::vector<int> links;
};

struct Flow {
  int route;
  unsigned long bytes;
  double start_s;
};

static void run(int argc, char** argv, size_t nodes, const std::vector<double>& bandwidth,
                const std::vector<Route>& routes, const std::vector<Flow>& flows) {
  sg4::Engine engine(&argc, argv);
  auto* zone = sg4::create_full_zone("zone");
  std::vector<sg4::Link*> links;
  for (size_t i = 0; i < bandwidth.size(); i++)
    links.push_back(zone->create_link("link" + std::to_string(i), bandwidth[i])->seal());
  auto* master = zone->create_host("master", 1e9);
  std::vector<sg4::Host*> hosts;
  for (size_t i = 0; i < nodes; i++)
    hosts.push_back(zone->create_host("host" + std::to_string(i), 1e9));
  for (size_t i = 0; i < routes.size(); i++) {
    auto* wait = zone->create_link("wait" + std::to_string(i), 1e30)
                     ->set_latency(routes[i].latency_s)
                     ->set_sharing_policy(sg4::Link::SharingPolicy::FATPIPE)
                     ->seal();
    std::vector<sg4::LinkInRoute> path{sg4::LinkInRoute(wait)};
    for (int link : routes[i].links)
      path.emplace_back(links[link]);
    zone->add_route(hosts[routes[i].source]->get_netpoint(),
                    hosts[routes[i].target]->get_netpoint(), nullptr, nullptr, path, false);
  }
  zone->seal();
  std::vector<sg4::CommPtr> comms;
  sg4::Actor::create("starter", master, [&] {
    for (const Flow& flow : flows) {
      sg4::this_actor::sleep_until(flow.start_s);
      const Route& route = routes[flow.route];
      auto comm = sg4::Comm::sendto_init(hosts[route.source], hosts[route.target]);
      comm->set_payload_size(flow.bytes);
      comm->start();
      comms.push_back(comm);
    }
    for (auto& comm : comms)
      comm->wait();
  });
  auto begun = std::chrono::steady_clock::now();
  engine.run();
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  std::printf("%.9g", took.count());
  for (auto& comm : comms)
    std::printf(" %.17g", comm->get_finish_time());
  std::printf("\n");
  std::fflush(stdout);
}

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  size_t nodes, n_links, n_routes, n_flows;
  while (std::cin >> nodes >> n_links >> n_routes >> n_flows) {
    std::vector<double> bandwidth(n_links);
    std::vector<Route> routes(n_routes);
    std::vector<Flow> flows(n_flows);
    for (double& value : bandwidth)
      std::cin >> value;
    for (Route& route : routes) {
      size_t number;
      std::cin >> route.source >> route.target >> route.latency_s >> number;
      route.links.resize(number);
      for (int& link : route.links)
        std::cin >> link;
    }
    for (Flow& flow : flows)
      std::cin >> flow.route >> flow.bytes >> flow.start_s;
    pid_t child = fork();
    if (child == 0) {
      run(argc, argv, nodes, bandwidth, routes, flows);
      _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0) {
      std::cerr << "SimGrid failed on a case\n";
      return 1;
    }
  }
  return 0;
}
