package main

import (
	"context"

	cartpolev1 "github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1"
	"github.com/raylink/raylink/examples/cartpole/gen/cartpole/v1/cartpolev1raylink"
	"github.com/raylink/raylink/examples/cartpole/internal/play"
	"github.com/raylink/raylink/examples/cartpole/internal/seed"
	"github.com/raylink/raylink/runtime"
)

// player implements the player node: it plays the newest policy of a tag.
type player struct{ clients *clients }

func newPlayer(ctx context.Context, self *runtime.Node) (cartpolev1raylink.PlayerNode, error) {
	l, err := openClients(ctx, self, nil)
	return &player{clients: l}, err
}

// Play pulls a policy and plays it.
func (p *player) Play(ctx context.Context, req *cartpolev1.PlayRequest) (*cartpolev1.PlayResponse, error) {
	policy, version, err := p.clients.pull(ctx, req.GetTag())
	if err != nil {
		return nil, err
	}
	earned, err := play.Episodes(ctx, policy, int(req.GetEpisodes()), seed.Stream(req.GetSeed(), "player", 0))
	return &cartpolev1.PlayResponse{Earned: earned, Version: version}, err
}
