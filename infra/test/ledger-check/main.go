// Checks exported ledgers and proofs with the transparency-log packages of the Go module system, which share no code with
// this project: note opens the signed head, tlog checks the tree. Usage: ledger-check KEY FILE...
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	key, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(key)))
	if err != nil {
		fail(err)
	}
	for _, file := range os.Args[2:] {
		text, err := os.ReadFile(file)
		if err == nil {
			err = check(string(text), note.VerifierList(verifier))
		}
		if err != nil {
			fail(fmt.Errorf("%s: %w", file, err))
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// head opens a signed head: origin, size, root.
func head(text string, known note.Verifiers) (int64, tlog.Hash, error) {
	opened, err := note.Open([]byte(text), known)
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 {
		return 0, tlog.Hash{}, fmt.Errorf("no checkpoint: %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return size, root, err
}

func check(text string, known note.Verifiers) error {
	body, signed, found := strings.Cut(text, "\n\n")
	if !found {
		return fmt.Errorf("no signed head")
	}
	size, root, err := head(signed, known)
	if err != nil {
		return err
	}
	lines := strings.Split(body, "\n")
	switch lines[0] {
	case "continuum ledger v1":
		return ledger(lines[1:], size, root)
	case "c2sp.org/tlog-proof@v1":
		entry, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
		if err != nil {
			return err
		}
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
		if err != nil {
			return err
		}
		path, err := hashes(lines[3:])
		if err != nil {
			return err
		}
		return tlog.CheckRecord(path, size, root, index, tlog.RecordHash(entry))
	case "continuum ledger consistency v1":
		older, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "from "))
		if err != nil {
			return err
		}
		from, old, err := head(string(older), known)
		if err != nil {
			return err
		}
		path, err := hashes(lines[2:])
		if err != nil {
			return err
		}
		return tlog.CheckTree(path, size, root, from, old)
	}
	return fmt.Errorf("unknown title %q", lines[0])
}

func hashes(lines []string) ([]tlog.Hash, error) {
	path := []tlog.Hash{}
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		path = append(path, hash)
	}
	return path, nil
}

// ledger builds the tree of all entries and compares its root.
func ledger(lines []string, size int64, root tlog.Hash) error {
	stored := []tlog.Hash{}
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		read := []tlog.Hash{}
		for _, index := range indexes {
			read = append(read, stored[index])
		}
		return read, nil
	})
	for number, line := range lines {
		entry, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return err
		}
		more, err := tlog.StoredHashes(int64(number), entry, reader)
		if err != nil {
			return err
		}
		stored = append(stored, more...)
	}
	found, err := tlog.TreeHash(int64(len(lines)), reader)
	if err != nil {
		return err
	}
	if int64(len(lines)) != size || found != root {
		return fmt.Errorf("%d entries have root %v, the head says %d and %v", len(lines), found, size, root)
	}
	return nil
}
