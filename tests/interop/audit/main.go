// Command audit checks a Muster audit log with the Go project's own packages for transparent logs
// (golang.org/x/mod/sumdb/tlog and note), which share nothing with Muster.
//
//	audit DIRECTORY VERIFIER-KEY [PROOFS.json]
//
// DIRECTORY is a C2SP tlog-tiles prefix. It verifies the checkpoint's signature, every tile against the
// checkpoint's root, every entry against the tiles, and the proofs in the file. It prints one line and exits
// with 0, or says what is wrong and exits with 1.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tilePath returns where C2SP tlog-tiles keeps a tile; tlog's own paths have the height in them.
func tilePath(kind string, index int64, width int) string {
	groups := fmt.Sprintf("%03d", index%1000)
	for index >= 1000 {
		index /= 1000
		groups = fmt.Sprintf("x%03d/%s", index%1000, groups)
	}
	path := "tile/" + kind + "/" + groups
	if width < tileWidth {
		path += ".p/" + strconv.Itoa(width)
	}
	return path
}

// directory reads tiles from files; it implements tlog.TileReader.
type directory string

func (d directory) Height() int { return tileHeight }

func (d directory) SaveTiles([]tlog.Tile, [][]byte) {}

func (d directory) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		content, err := d.read(tilePath(strconv.Itoa(tile.L), tile.N, tile.W))
		if err != nil {
			return nil, err
		}
		data[i] = content
	}
	return data, nil
}

func (d directory) read(path string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), filepath.FromSlash(path)))
}

// checkpoint opens the signed note and returns the tree that it commits to.
func (d directory) checkpoint(verifierKey string) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		return tlog.Tree{}, err
	}
	signed, err := d.read("checkpoint")
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		return tlog.Tree{}, fmt.Errorf("not a checkpoint of %s: %q", verifier.Name(), opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, err
	}
	return tlog.Tree{N: size, Hash: root}, nil
}

// bundle returns the entries of one bundle.
func (d directory) bundle(index int64, width int) ([][]byte, error) {
	path := tilePath("entries", index, width)
	data, err := d.read(path)
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("%s: entry %d is cut short", path, len(entries))
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:end])
		data = data[end:]
	}
	if len(entries) != width {
		return nil, fmt.Errorf("%s has %d entries, not %d", path, len(entries), width)
	}
	return entries, nil
}

// checkEntries compares every entry with its leaf hash in the tiles, which the reader authenticates.
func checkEntries(d directory, tree tlog.Tree, hashes tlog.HashReader) error {
	for first := int64(0); first < tree.N; first += tileWidth {
		width := int(min(tileWidth, tree.N-first))
		entries, err := d.bundle(first/tileWidth, width)
		if err != nil {
			return err
		}
		indexes := make([]int64, width)
		for i := range indexes {
			indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
		}
		wanted, err := hashes.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for i, entry := range entries {
			if tlog.RecordHash(entry) != wanted[i] {
				return fmt.Errorf("entry %d does not hash to its leaf", first+int64(i))
			}
		}
	}
	return nil
}

// checkTiles compares the tiles of every level with those that tlog makes of the level below.
func checkTiles(d directory, tree tlog.Tree, hashes tlog.HashReader) (int, error) {
	tiles := tlog.NewTiles(tileHeight, 0, tree.N)
	for _, tile := range tiles {
		stored, err := d.read(tilePath(strconv.Itoa(tile.L), tile.N, tile.W))
		if err != nil {
			return 0, err
		}
		wanted, err := tlog.ReadTileData(tile, hashes)
		if err != nil {
			return 0, err
		}
		if string(stored) != string(wanted) {
			return 0, fmt.Errorf("%s is not made of the level below", tile.Path())
		}
	}
	return len(tiles), nil
}

// proofs is what the service says; hashes are base64.
type proofs struct {
	Inclusion []struct {
		Index, Size int64
		Root        tlog.Hash
		Leaf        tlog.Hash
		Hashes      []tlog.Hash
	}
	Consistency []struct {
		Old, New         int64
		OldRoot, NewRoot tlog.Hash
		Hashes           []tlog.Hash
	}
}

// checkProofs verifies the proofs in a file and returns how many there were.
func checkProofs(path string) (int, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var given proofs
	if err := json.Unmarshal(content, &given); err != nil {
		return 0, err
	}
	for _, one := range given.Inclusion {
		if err := tlog.CheckRecord(one.Hashes, one.Size, one.Root, one.Index, one.Leaf); err != nil {
			return 0, fmt.Errorf("inclusion of %d in %d: %w", one.Index, one.Size, err)
		}
	}
	for _, one := range given.Consistency {
		if err := tlog.CheckTree(one.Hashes, one.New, one.NewRoot, one.Old, one.OldRoot); err != nil {
			return 0, fmt.Errorf("consistency of %d with %d: %w", one.Old, one.New, err)
		}
	}
	return len(given.Inclusion) + len(given.Consistency), nil
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: audit DIRECTORY VERIFIER-KEY [PROOFS.json]")
	}
	log := directory(arguments[0])
	tree, err := log.checkpoint(arguments[1])
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	hashes := tlog.TileHashReader(tree, log)
	if err := checkEntries(log, tree, hashes); err != nil {
		return err
	}
	tiles, err := checkTiles(log, tree, hashes)
	if err != nil {
		return err
	}
	proved := 0
	if len(arguments) > 2 {
		if proved, err = checkProofs(arguments[2]); err != nil {
			return err
		}
	}
	fmt.Printf("accepted: %d entries, %d tiles, %d proofs, root %s\n", tree.N, tiles, proved, tree.Hash)
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
}
